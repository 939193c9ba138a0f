"""From a slim network to files for the device, each step proved equal to the one before."""
