"""The pages people look at: the report of a run, and several runs side by side."""
