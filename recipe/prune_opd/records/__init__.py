"""Numbers for people: logged metrics, sums by position, what a run writes down."""
