"""The commands beside `serve`, `plan`, `status` and `bench`: one file for each noun."""
