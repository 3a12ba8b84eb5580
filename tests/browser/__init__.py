"""The browser library and the page, in a browser."""
