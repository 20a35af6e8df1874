# Varnish as a cache of jobs for 300 s; its parameters are in roster.rs.
vcl 4.1;
backend default { .host = "127.0.0.1"; .port = "@UPSTREAM_PORT@"; .max_connections = 512; }
sub vcl_recv {
  if (req.method == "PURGE") { return (purge); }
  if (req.method != "GET" && req.method != "HEAD") { return (pass); }
  unset req.http.Cookie;
  if (req.url !~ "^/jobs/") { return (pass); }
  return (hash);
}
sub vcl_backend_response {
  if (bereq.url ~ "^/jobs/" && beresp.status == 200) { set beresp.ttl = 300s; set beresp.grace = 10s; }
}
