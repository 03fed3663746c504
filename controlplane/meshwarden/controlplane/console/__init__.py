"""The console: a page for people, served by the REST listener from this package alone.

    assets      which files there are, of which type, and what a browser is told of each
    static/     the page: plain ES modules and styles, as they lie in the tree
    swagger, explorer/    Swagger UI on the API's document, out of a package

The page holds no data: it asks the REST API for all of it, as whoever has logged in.
"""
