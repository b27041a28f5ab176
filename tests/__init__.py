"""The tests, which mirror the folders of the library; `support` is what they share."""
