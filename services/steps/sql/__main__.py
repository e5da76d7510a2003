"""`python -m anabranch.services.steps.sql`."""

from anabranch.services.steps.serve import serve
from anabranch.services.steps.sql.settings import SqlSettings
from anabranch.services.steps.sql.step import sql

if __name__ == "__main__":
    serve(sql, SqlSettings())
