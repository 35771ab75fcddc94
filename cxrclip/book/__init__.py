"""The book: `make reproduce`, what pages call, costs, a dry run, and the check that no patient data are committed."""
