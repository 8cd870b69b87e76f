"""What builds the site: its order and links, the generated references, the notebook."""
