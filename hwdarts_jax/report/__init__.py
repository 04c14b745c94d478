"""The page `report.html`: what it shows of a run, and how it is made."""
