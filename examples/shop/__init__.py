"""A bookshop: the reference application of kvorum, small enough to read in one sitting.

    python -m examples.shop                                   in memory: gone when it ends
    KVORUM_TARGET=kvorum://h1:7100,... python -m examples.shop    on a cluster, from many processes

    shop.py        what the shop keeps, and what it promises: all nine patterns, no HTTP
    web.py         the pages: forms, cookies, errors, and who may do what
    passwords.py   scrypt

The one who signs up first owns the shop. Rules of this package: a page never writes to the store
but through `Shop`; text from outside is escaped by the templates, and by the patterns in keys.
"""
