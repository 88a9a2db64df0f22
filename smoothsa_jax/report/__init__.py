"""A report on a run as a web page: scores, masks, and how slots emerge.

    a workdir -> records.py (log and scores) and clips.py (masks, slots and each iteration)
      -> ranking.py, distances.py, trajectories.py, curves.py: numbers for plots
      -> figures.py: plots -> page.py: one HTML file; build.py runs all of it

Only the plots need matplotlib (the extra `report`).
"""
