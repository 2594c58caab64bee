"""What is kept of the traffic: cases, their reviews, counts; and the queue on the way there."""
