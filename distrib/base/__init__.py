"""What every room needs: errors, files, paths, streams."""
