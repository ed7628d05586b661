"""The core types and the engine: target, threat, goal, access, oracle, attack, run."""
