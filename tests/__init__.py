"""Tests may import any room. They are a package so that they can share `tests.data_folder`."""
