"""A page that shows a run: what it learned, what its slots see, how they come about.

    a workdir -> records.py (log, scores) and clips.py (what the model finds in samples, and on the way there)
      -> ranking.py, distances.py, trajectories.py, curves.py: numbers for a plot
      -> figures.py: plots -> page.py: one HTML file -> build.py puts it together

Plots need matplotlib (the extra `report`); nothing else of the package does.
"""
