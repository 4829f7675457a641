"""The admin API: keys, tenants, the queue and the audit over HTTP, under /admin/v1."""
