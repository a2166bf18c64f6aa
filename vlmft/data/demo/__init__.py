"""Generated datasets, written once as real files in a published format."""
