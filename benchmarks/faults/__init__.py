"""What is lost, and who waits, when databases, disks, receivers and processes fail: `make faults`."""
