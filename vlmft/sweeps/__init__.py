"""Many runs as one: the table, pictures and page that compare them. Nothing here imports torch."""
