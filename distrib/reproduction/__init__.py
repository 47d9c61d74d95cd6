"""The report that this project began from: its claims, the evidence for them, and their page."""
