# Varnish with its built-in rules: what the upstream states, no grace, kept for revalidation.
vcl 4.1;
backend default {
  .host = "127.0.0.1";
  .port = "@UPSTREAM@";
}
