"""Drift: whether recent answers look like those of a reference, in numbers that say how many they rest on."""
