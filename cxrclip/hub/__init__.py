"""A trained model in the form that plain transformers reads."""
