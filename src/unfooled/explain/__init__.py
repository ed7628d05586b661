"""Why a target is fooled: functions that return an `Explanation`: rows, a sentence with its control, a figure."""
