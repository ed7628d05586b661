"""Images that mean nothing to people and everything to a target: made, measured, and taken back by retraining."""
