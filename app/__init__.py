"""The service: speaks HTTP, and asks the model room. Imports `model`, never `training`."""
