package nginx

import (
	"fmt"
	"strings"
)

// unneeded says why directives have no purpose any more.
var unneeded = map[string]string{
	"user": "the node's own user is `user` in sluice.yaml or the unit's", "worker_processes": "a node uses all processors",
	"worker_rlimit_nofile": "a node takes as many files as it may have; see LimitNOFILE of the unit", "worker_connections": "connections are bounded by files alone",
	"events": "connections are bounded by files alone", "multi_accept": "there are no workers", "use": "there are no workers", "accept_mutex": "there are no workers",
	"pid": "there is no file of the process's ID", "daemon": "a node stays in the foreground", "master_process": "a node is one process", "load_module": "there are no modules",
	"pcre_jit": "expressions are RE2, and matched in linear time", "thread_pool": "no file is served",
	"log_format": "log.access in sluice.yaml has a record of each flow, JSON lines", "access_log": "log.access in sluice.yaml has a record of each flow, JSON lines",
	"error_log": "log in sluice.yaml says what is logged", "log_not_found": "log in sluice.yaml says what is logged", "open_log_file_cache": "the access log is one file",
	"sendfile": "the kernel moves raw bytes by itself", "tcp_nopush": "packets are filled by themselves", "tcp_nodelay": "small writes go at once by themselves",
	"reset_timedout_connection": "connections that end by time are reset by themselves", "aio": "no file is served", "directio": "no file is served", "output_buffers": "no file is served",
	"types": "no file is served", "types_hash_max_size": "no file is served", "default_type": "answers of a node say their type", "charset": "answers go on as they are",
	"server_names_hash_bucket_size": "there are no such tables", "server_names_hash_max_size": "there are no such tables", "variables_hash_max_size": "there are no such tables", "variables_hash_bucket_size": "there are no such tables",
	"map_hash_bucket_size": "there are no such tables", "map_hash_max_size": "there are no such tables", "proxy_headers_hash_max_size": "there are no such tables", "proxy_headers_hash_bucket_size": "there are no such tables",
	"server_tokens": "no version is told", "server_name_in_redirect": "redirects say the host asked for", "port_in_redirect": "redirects say what they are told",
	"keepalive_timeout": "clients.idle_timeout in sluice.yaml", "keepalive_requests": "connections live as long as they are used", "client_header_timeout": "clients.head_timeout in sluice.yaml",
	"client_body_timeout": "clients.idle_timeout in sluice.yaml, or `timeouts.idle` of a route", "send_timeout": "clients.idle_timeout in sluice.yaml", "large_client_header_buffers": "clients.head_size in sluice.yaml",
	"client_header_buffer_size": "clients.head_size in sluice.yaml", "client_body_buffer_size": "bodies are passed on as they come", "client_body_temp_path": "nothing of a body is kept", "client_body_in_file_only": "nothing of a body is kept",
	"http2": "HTTP/2 is spoken by itself", "http3": "HTTP/3 is spoken by itself", "http2_max_concurrent_streams": "clients.streams in sluice.yaml", "quic_retry": "Retry is used when many handshakes are under way", "quic_gso": "it is used by itself", "http3_hq": "HTTP/3 is spoken by itself",
	"ssl_session_cache": "sessions are resumed at every node by shared ticket keys", "ssl_session_timeout": "tls.ticket_keys in sluice.yaml", "ssl_session_tickets": "sessions are resumed at every node by shared ticket keys", "ssl_session_ticket_key": "ticket keys are shared through etcd",
	"ssl_ciphers": "suites that are forward secret and authenticated alone", "ssl_prefer_server_ciphers": "suites that are forward secret and authenticated alone", "ssl_ecdh_curve": "X25519MLKEM768, X25519 and the NIST curves", "ssl_dhparam": "no finite field is used", "ssl_conf_command": "see CONFIGURATION.md on TLS with clients",
	"ssl_stapling": "responses are stapled for certificates that ask for it", "ssl_stapling_verify": "responses are verified", "ssl_trusted_certificate": "responses are verified", "ssl_buffer_size": "records grow by themselves", "ssl_early_data": "requests that may be done twice are taken early over HTTP/3", "ssl_verify_depth": "chains are verified whole",
	"proxy_http_version": "the version follows from the backend", "proxy_buffering": "bodies are passed on as they come", "proxy_request_buffering": "bodies are passed on as they come", "proxy_buffers": "bodies are passed on as they come", "proxy_buffer_size": "bodies are passed on as they come",
	"proxy_busy_buffers_size": "bodies are passed on as they come", "proxy_max_temp_file_size": "nothing of a body is kept", "proxy_temp_path": "nothing of a body is kept", "proxy_temp_file_write_size": "nothing of a body is kept", "proxy_socket_keepalive": "connections are kept alive by themselves", "proxy_send_timeout": "a relay of which one side takes nothing ends after a time", "proxy_pass_request_headers": "headers go on", "proxy_pass_request_body": "bodies go on", "proxy_headers_hash": "there are no such tables", "proxy_buffers_size": "bodies are passed on as they come",
	"proxy_next_upstream": "each target is tried that takes no connection; `retry` has more", "proxy_next_upstream_tries": "each target is tried that takes no connection; `retry` has more", "proxy_next_upstream_timeout": "each target is tried that takes no connection; `retry` has more",
	"resolver": "names are looked up as /etc/resolv.conf says", "resolver_timeout": "names are looked up as /etc/resolv.conf says", "preread_timeout": "clients that open slowly are bounded by themselves", "preread_buffer_size": "openings are bounded by themselves",
	"gzip_vary": "`Vary` is said by itself", "gzip_proxied": "compression goes by the client's wish", "gzip_comp_level": "the level is the node's choice", "gzip_buffers": "bodies are passed on as they come", "gzip_http_version": "compression goes by the client's wish", "gzip_disable": "compression goes by the client's wish", "gzip": "it is off", "gzip_types": "compression is off", "gzip_min_length": "compression is off",
	"limit_req_status": "who is over a limit gets 429", "limit_conn_status": "who is over a limit gets 429", "limit_req_log_level": "the access log says `rate`", "limit_conn_log_level": "the access log says `limit`", "chunked_transfer_encoding": "bodies are framed as the client takes them", "etag": "no file is served",
	"real_ip_header": "addresses come by the PROXY protocol; trusted_proxies in sluice.yaml", "real_ip_recursive": "addresses come by the PROXY protocol", "set_real_ip_from": "trusted_proxies in sluice.yaml", "proxy_intercept_errors": "see `error_pages` with `upstream`", "merge_slashes": "paths are compared with slashes merged", "underscores_in_headers": "headers with _ go on",
	"ignore_invalid_headers": "headers that are not valid are refused", "absolute_redirect": "redirects say what they are told", "lingering_close": "what comes late is read for a while", "lingering_timeout": "what comes late is read for a while", "lingering_time": "what comes late is read for a while", "satisfy": "all have to agree", "auth_basic": "it is off",
	"tcp_nodelay_off": "small writes go at once", "open_file_cache": "no file is served", "open_file_cache_valid": "no file is served", "open_file_cache_min_uses": "no file is served", "open_file_cache_errors": "no file is served", "variables": "there are none",
	"proxy_protocol_timeout": "a trusted proxy has 5 seconds", "reuseport": "it is used by itself", "ssl_reject_handshake": "hosts without a route get 404, those without a certificate no handshake", "worker_priority": "see Nice= of systemd", "worker_cpu_affinity": "see CPUAffinity= of systemd", "worker_shutdown_timeout": "drain_timeout in sluice.yaml",
}

// byHand says what to do about directives that have no counterpart in a key.
var byHand = map[string]struct{ why, todo string }{
	"root":         {"a node serves no files", "have a web server of your own serve them, and route to it"},
	"alias":        {"a node serves no files", "have a web server of your own serve them, and route to it"},
	"index":        {"a node serves no files", "have a web server of your own serve them, and route to it"},
	"try_files":    {"a node serves no files", "have a web server of your own serve them, and route to it"},
	"autoindex":    {"a node serves no files", "have a web server of your own serve them, and route to it"},
	"error_page":   {"pages for errors are texts of a key or files in `pages`", "`error_pages` of the route"},
	"if":           {"a route has no conditions but host, port, path, method and headers", "write a route of its own with `methods` or `headers`"},
	"fastcgi_pass": {"backends speak HTTP", "put a server before the application that does"},
	"uwsgi_pass":   {"backends speak HTTP", "put a server before the application that does"},
	"scgi_pass":    {"backends speak HTTP", "put a server before the application that does"},
	"proxy_cache":  {"a node keeps no answers", "put a cache behind the route"},
	"mirror":       {"requests go to one backend", ""},
	"sub_filter":   {"bodies go on as they are", "have the backend do that"},
	"geo":          {"there are no tables by address", "`allow` and `deny` of routes and mappings"},
	"limit_rate":   {"bandwidth is bounded of mappings alone", "`limits.bytes_per_second` of a mapping"},
	"proxy_bind":   {"the kernel chooses the address that backends see", ""},

	"proxy_download_rate": {"nginx bounds each connection, a mapping all of them together", "`limits.bytes_per_second.down` of the mapping"},
	"proxy_upload_rate":   {"nginx bounds each connection, a mapping all of them together", "`limits.bytes_per_second.up` of the mapping"},
	"proxy_redirect":      {"Location goes on as the backend says it", "`response_headers`, or have the backend say the right one"},
	"proxy_cookie_path":   {"cookies go on as they are", "have the backend say the right path"},
	"proxy_cookie_domain": {"cookies go on as they are", "have the backend say the right domain"},
	"proxy_method":        {"methods go on as they are", ""},
	"proxy_set_body":      {"bodies go on as they are", ""},
}

// rest notes what nobody has taken.
func (im *importer) rest(all []*Directive) {
	for _, d := range all {
		if !d.done {
			im.leftOver(d)
		}
		if d.Name != "types" && d.Name != "events" {
			im.rest(d.Block)
		}
	}
}

func (im *importer) leftOver(d *Directive) {
	base, _, _ := strings.Cut(d.Name, "_by_lua")
	switch {
	case d.parent != nil && d.parent.Name == "map":
		if d.done = d.parent.done; !d.done {
			im.note(Unneeded, d, "the map is used by nothing that was carried over", "")
		}
	case d.Name == "map":
		im.leftMap(d)
	case d.Name == "upstream":
		im.note(Unneeded, d, "nothing that was carried over leads to it", "")
		dealtWith(d)
	case unneeded[d.Name] != "":
		im.note(Unneeded, d, unneeded[d.Name], "")
	case d.Name == "proxy_redirect" && (d.arg(0) == "off" || d.arg(0) == "default"):
		im.note(Unneeded, d, "Location goes on as the backend says it, which knows the client's host", "")
	case byHand[d.Name].why != "":
		im.lost(d, byHand[d.Name].why, byHand[d.Name].todo)
		if d.Name == "if" {
			dealtWith(d)
		}
	case base != d.Name:
		im.lost(d, "there are no scripts", "have the backend do that")
	case d.Name == "set":
		im.note(Unneeded, d, "nothing that was carried over uses it", "")
	case d.parent != nil && !known(d.parent.Name):
		d.done = true // said of the block around it
	default:
		im.lost(d, "it is not known here", "see whether a field in KEYS.md or CONFIGURATION.md does the same")
	}
}

// known reports whether a block is one whose content is looked at.
func known(block string) bool {
	switch block {
	case "http", "stream", "server", "location", "events", "upstream", "map", "types", "if", "limit_except":
		return true
	}
	return false
}

// leftMap notes a map that nothing was made of.
func (im *importer) leftMap(d *Directive) {
	if d.arg(0) == "$http_upgrade" {
		im.note(Unneeded, d, "upgrades (WebSocket) are looked after by themselves", "")
	} else {
		im.lost(d, fmt.Sprintf("nothing that was carried over could use %s", d.arg(1)), "see the notes on what uses it")
	}
	dealtWith(d)
}
