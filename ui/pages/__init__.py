"""One file per page; `build(site)` lays the page out and binds what it does."""
