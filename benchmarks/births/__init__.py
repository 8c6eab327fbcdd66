"""Births of NaN: networks in which it begins, each with a healthy twin, and how many of them are found."""
