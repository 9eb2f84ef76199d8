package nginx

// becomes are servers, and what they become. In the notes ... parts texts that
// all must be there.
var becomes = []struct {
	name, text string
	keys       map[string]string
	notes      []string
}{
	{
		name: "a stream with its defaults and a comment",
		text: "stream { # Environment: e1, Service: ssh\nserver { listen 20001; proxy_pass 10.0.0.1:22; } }",
		keys: map[string]string{"ports/tcp/20001": `{"backend":"10.0.0.1:22","env":"e1","service":"ssh","idle_timeout":"10m"}`},
	},
	{
		name: "a stream with everything",
		text: `stream {
limit_conn_zone $binary_remote_addr zone=per:1m;
upstream u { least_conn; server 10.0.0.1:22 weight=2; server 10.0.0.2:22; server 10.0.0.3:22 down; }
server { listen 20001 udp reuseport; proxy_pass u; proxy_timeout 1h30m; proxy_connect_timeout 500ms; proxy_protocol on; allow 10.0.0.0/8; deny all; limit_conn per 3; }
}`,
		keys: map[string]string{"ports/udp/20001": `{"backend":{"targets":[{"address":"10.0.0.1:22","weight":2},"10.0.0.2:22"],"balance":"least_connections"},` +
			`"proxy_protocol":{"send":"v2"},"connect_timeout":"500ms","idle_timeout":"1h30m","limits":{"per_client":3},"allow":["10.0.0.0/8"]}`},
	},
	{
		name: "streams that cannot be",
		text: `stream {
server { listen 1; proxy_pass $x; }
server { listen 2; proxy_pass unix:/run/x; }
server { listen unix:/run/y; proxy_pass a:1; }
server { listen 3; return 200; }
server { listen 4; proxy_pass a:1; proxy_ssl on; }
server { listen 5; proxy_pass a:1; }
server { listen 5; proxy_pass b:1; }
}`,
		keys: map[string]string{"ports/tcp/5": `{"backend":"a:1","idle_timeout":"10m"}`},
		notes: []string{"2 lost: proxy_pass $x", "3 lost: ...socket of the machine", "4 lost: listen", "5 lost: server: it has no proxy_pass", "6 lost: proxy_ssl on...left out",
			"8 lost: server: ports/tcp/5 is taken by nginx.conf:7"},
	},
	{
		name: "TLS by name",
		text: `stream {
map $ssl_preread_server_name $to { hostnames; a.example.com 10.0.0.1:443; *.b.example.com 10.0.0.2:443; ~^(\w+)\.c\.example\.com$ $1-box:443; }
server { listen 8444; ssl_preread on; proxy_pass $to; }
}`,
		keys: map[string]string{
			"routes/tls.8444.a.example.com":     `{"host":["a.example.com"],"ports":"8444","backend":"10.0.0.1:443","tls":"passthrough","timeouts":{"idle":"10m"}}`,
			"routes/tls.8444.b.example.com":     `{"host":["*.b.example.com"],"ports":"8444","backend":"10.0.0.2:443","tls":"passthrough","timeouts":{"idle":"10m"}}`,
			"routes/tls.8444.any.c.example.com": `{"host":["~^(?<group1>\\w+)\\.c\\.example\\.com$"],"ports":"8444","priority":1,"backend":"${group1}-box:443","tls":"passthrough","timeouts":{"idle":"10m"}}`,
		},
	},
	{
		name: "names, and what answers by itself",
		text: `http {
server { listen 80 default_server; server_name _; return 301 https://$host$request_uri; }
server { listen 443 ssl default_server; server_name .example.com www.x-gpu.*; location = /ping { return 204; } location /old/ { rewrite ^ https://new.example.com$request_uri permanent; } location / { return 200 "hi\n"; } }
}`,
		keys: map[string]string{
			"routes/any.80":           `{"host":["*"],"ports":"80","redirect":{"to":"https://${host}${uri}","status":301}}`,
			"routes/example.com.ping": `{"host":["example.com","*.example.com","~^www\\.x-gpu\\..","*"],"path":"/ping","respond":{"status":204}}`,
			"routes/example.com.old":  `{"host":["example.com","*.example.com","~^www\\.x-gpu\\..","*"],"path":"/old/","redirect":{"to":"https://new.example.com${uri}","status":301}}`,
			"routes/example.com.root": `{"host":["example.com","*.example.com","~^www\\.x-gpu\\..","*"],"respond":{"status":200,"body":"hi\n"}}`,
		},
		notes: []string{"3 differs: location = /ping: a route for /ping also takes what lies below"},
	},
	{
		name: "paths",
		text: `http { server { listen 443 ssl default_server; client_max_body_size 0;
location /a/ { proxy_set_header Host $host; proxy_pass http://10.0.0.1/; }
location /b { proxy_set_header Host $host; proxy_pass http://10.0.0.1:81/c; }
location ~ ^/(d|e)/ { proxy_set_header Host $host; proxy_pass http://10.0.0.1; }
location ~ \.php$ { fastcgi_pass 10.0.0.1:9; }
location @named { proxy_pass http://10.0.0.1; }
location /f { rewrite ^/f/(.*)$ /g/$1 break; proxy_set_header Host $host; proxy_pass http://10.0.0.1; }
location /static/ { root /srv; }
} }`,
		keys: map[string]string{
			"routes/any.a":       `{"host":["*"],"path":"/a/","backend":"10.0.0.1:80","strip_prefix":true}`,
			"routes/any.a.slash": `{"host":["*"],"path":"/a","redirect":{"to":"/a/","status":301}}`,
			"routes/any.b":       `{"host":["*"],"path":"/b","backend":"10.0.0.1:81","rewrite":{"prefix":"/c"}}`,
			"routes/any.d":       `{"host":["*"],"path":"/d/","backend":"10.0.0.1:80"}`,
			"routes/any.e":       `{"host":["*"],"path":"/e/","backend":"10.0.0.1:80"}`,
			"routes/any.f":       `{"host":["*"],"path":"/f","backend":"10.0.0.1:80","rewrite":{"regex":"^/f/(.*)$","to":"/g/${1}"}}`,
		},
		notes: []string{"3 differs: location /b", "5 lost: location ~ \\.php$", "6 lost: location @named", "7 differs: location /f", "8 lost: location /static/"},
	},
	{
		name: "backends",
		text: `http {
upstream u { ip_hash; server 10.0.0.1 max_fails=3 fail_timeout=30s; server 10.0.0.2:81; keepalive 8; }
server { listen 443 ssl default_server; client_max_body_size 10m;
location /u { proxy_pass http://u; proxy_set_header Host $host; proxy_set_header X-A "a $remote_addr"; proxy_set_header X-B ""; proxy_connect_timeout 5; proxy_read_timeout 1m; }
location /s { proxy_pass https://api.example.org; proxy_ssl_verify on; proxy_ssl_server_name on; }
location /g { grpc_pass grpc://10.0.0.1:50051; }
} }`,
		keys: map[string]string{
			"routes/any.u": `{"host":["*"],"path":"/u","backend":{"targets":["10.0.0.1:80","10.0.0.2:81"],"balance":"source_hash","eject":{"failures":3,"time":"30s"}},` +
				`"request_headers":{"set":{"X-A":"a ${client_ip}"},"remove":["X-B"]},"timeouts":{"connect":"5s","first_byte":"1m","idle":"1m"},"limits":{"body":"10MiB"}}`,
			"routes/any.s": `{"host":["*"],"path":"/s","backend":{"targets":["api.example.org:443"],"tls":true},"request_headers":{"set":{"Host":"api.example.org"}},"limits":{"body":"10MiB"}}`,
			"routes/any.g": `{"host":["*"],"path":"/g","backend":{"targets":["10.0.0.1:50051"],"h2c":true},"limits":{"body":"10MiB"}}`,
		},
		notes: []string{"4 differs: location /u", "5 differs: location /s", "6 differs: location /g", "6 differs: grpc_pass"},
	},
	{
		name: "who may come, and how often",
		text: `http {
limit_req_zone $binary_remote_addr zone=r:1m rate=10r/s; limit_conn_zone $http_x_key zone=c:1m;
server { listen 443 ssl default_server; auth_basic "in here"; auth_basic_user_file users;
location /a { deny 10.0.0.1; allow 10.0.0.0/8; deny all; limit_req zone=r burst=20 nodelay; limit_conn c 4; return 404; proxy_pass http://10.0.0.1; }
location /b { auth_basic off; deny 10.0.0.1; allow all; limit_req zone=r; limit_conn c 4; proxy_set_header Host $host; proxy_pass http://10.0.0.1; }
location /c { allow 10.0.0.0/8; deny all; proxy_set_header Host $host; proxy_pass http://10.0.0.1; }
} }`,
		keys: map[string]string{
			"routes/any.a": `{"host":["*"],"path":"/a","respond":{"status":404}}`,
			"routes/any.b": `{"host":["*"],"path":"/b","backend":"10.0.0.1:80","limits":{"body":"1MiB","rate":[{"requests":10,"per":"1s","burst":1,"by":"client"}],"concurrency":[{"requests":4,"by":"header:X-Key"}]},"deny":["10.0.0.1"]}`,
			"routes/any.c": `{"host":["*"],"path":"/c","backend":"10.0.0.1:80","limits":{"body":"1MiB"},"basic_auth":{"file":"passwords","realm":"in here"},"allow":["10.0.0.0/8"]}`,
		},
		notes: []string{"3 differs: auth_basic_user_file", "4 differs: location /a", "4 differs: limit_req", "4 differs: limit_conn", "4 lost: proxy_pass", "5 differs: location /b", "5 differs: limit_req", "5 differs: limit_conn", "6 differs: location /c"},
	},
	{
		name: "what keeps requests away in other ways is left out",
		text: `http { server { listen 443 ssl default_server;
location /a { auth_request /auth; proxy_pass http://10.0.0.1; }
location /b { if ($http_x_token != "x") { return 403; } proxy_pass http://10.0.0.1; }
location /c { auth_basic x; proxy_pass http://10.0.0.1; }
location /d { allow nonsense; proxy_set_header Host $host; proxy_pass http://10.0.0.1; }
} }`,
		keys: map[string]string{
			"routes/any.d": `{"host":["*"],"path":"/d","backend":"10.0.0.1:80","limits":{"body":"1MiB"},"deny":["0.0.0.0/0","::/0"]}`,
		},
		notes: []string{"2 lost: auth_request /auth", "3 lost: if", "4 differs: location /c", "4 lost: auth_basic x", "5 differs: location /d", "5 lost: allow nonsense...nobody is let in"},
	},
	{
		name: "what is done to answers",
		text: `http { gzip on; gzip_types application/json; gzip_min_length 1k;
server { listen 443 ssl default_server; add_header Strict-Transport-Security "max-age=31536000; includeSubDomains" always; add_header X-A b always; proxy_hide_header X-C; add_header X-D $upstream_addr;
location / { proxy_set_header Host $host; proxy_pass http://10.0.0.1; sub_filter a b; } } }`,
		keys: map[string]string{
			"routes/any.root": `{"host":["*"],"backend":"10.0.0.1:80","response_headers":{"add":{"X-A":"b"},"remove":["X-C"]},"limits":{"body":"1MiB"},` +
				`"compress":{"types":["application/json","text/html"],"min_size":"1KiB"},"hsts":{"max_age":"8760h","include_subdomains":true}}`,
		},
		notes: []string{"2 lost: add_header X-D...$upstream_addr has no counterpart", "3 lost: sub_filter"},
	},
	{
		name: "expressions go in their order",
		text: `http { server { listen 443 ssl; server_name ~^a; return 200 a; } server { listen 443 ssl; server_name ~^ab b.example.com; return 200 b; } }`,
		keys: map[string]string{
			"routes/a":  `{"host":["~^a"],"priority":2,"respond":{"status":200,"body":"a"}}`,
			"routes/ab": `{"host":["~^ab","b.example.com"],"priority":1,"respond":{"status":200,"body":"b"}}`,
		},
		notes: []string{"1 differs: server: nginx has it answer on port 443"},
	},
	{
		name:  "what nobody knows",
		text:  `frobnicate on; http { server { listen 443 ssl default_server; wobble { a b; } location / { return 200; content_by_lua_block { x = {} } } } }`,
		keys:  map[string]string{"routes/any.root": `{"host":["*"],"respond":{"status":200}}`},
		notes: []string{"1 lost: frobnicate on", "1 lost: wobble", "1 lost: content_by_lua_block"},
	},
}
