"""How the bundled models were made: one recipe a model, and the training material they share."""
