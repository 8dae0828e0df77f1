"""The neighbours of the method: other ways to more labelled images, each a dataset folder for `de compare --arm`."""
