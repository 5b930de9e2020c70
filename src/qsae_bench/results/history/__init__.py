"""Record every run in a database, SQLite by default and PostgreSQL by URL, and query it.

``store.History`` opens the database and adds runs, ``importing.import_runs`` adds folders of them,
``queries.series`` and ``queries.last_accepted`` read. ``flatten`` turns a run document into rows of the
tables in ``schema``. ``url`` chooses the database and is the only module that may be imported without
SQLAlchemy.
"""
