"""How arrays, labelled episodes, tables and files become checked flat arrays."""
