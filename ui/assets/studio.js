// Crosshair and values under the pointer for charts, and their data as CSV; see ui/charts.py.
