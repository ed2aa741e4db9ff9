"""The machines of the installation and the links to them."""
