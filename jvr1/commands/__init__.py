"""Commands that train nothing and ask nothing: models and data in and out, plans. Each module has `main(arguments)`."""
