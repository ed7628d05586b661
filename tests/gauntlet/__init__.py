"""The gauntlet: targets whose evaluations lie, with their honest answers (`broken`), and honest targets (`honest`).

`answers.json` holds the honest answers of the undefended networks, made by `python -m benchmarks.gauntlet --answers`.
"""
