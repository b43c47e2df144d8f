"""The paper's ablations: a file a table, and an argument a row."""
