"""From reviewers' labels to a calibrated confidence and a threshold that can be defended; needs no torch."""
