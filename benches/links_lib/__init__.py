"""Parts of benches/links."""
