"""The checks of `meshwarden up --check`: each looks at the running mesh from outside, as a user would."""
