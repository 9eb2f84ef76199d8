package router_test

import (
	"strings"
	"testing"

	"github.com/remotegpu/sluice/router"
)

// TestResponsePolicyRefusals wants nonsense refused, in words.
func TestResponsePolicyRefusals(t *testing.T) {
	for policy, want := range map[string]string{
		`"compress": 1`: "compress: must be true, false or an object",
		`"compress": {"types": ["text/event-stream"]}`:                                          `compress.types[0]: "text/event-stream" is never compressed`,
		`"compress": {"types": ["application/grpc+proto"]}`:                                     "never compressed",
		`"compress": {"types": ["text/html", "image/JPEG"]}`:                                    `compress.types[1]: "image/JPEG" is compressed already`,
		`"compress": {"types": ["video/*"]}`:                                                    "is compressed already",
		`"compress": {"types": ["*"]}`:                                                          "is not a media type",
		`"compress": {"types": ["*/*"]}`:                                                        "is not a media type",
		`"compress": {"types": ["text/*plain"]}`:                                                "is not a media type",
		`"compress": {"types": ["text"]}`:                                                       "is not a media type",
		`"compress": {"types": [""]}`:                                                           "is not a media type",
		`"compress": {"min_size": "1MB"}`:                                                       "compress.min_size: must be at most 64KiB",
		`"compress": {"codings": ["br"]}`:                                                       `compress.codings[0]: "br" is not known`,
		`"compress": {"codings": ["gzip", "gzip"]}`:                                             `compress.codings[1]: "gzip" occurs twice`,
		`"compress": true, "tls": "passthrough"`:                                                `compress: has no meaning with "tls": "passthrough"`,
		`"compress": false, "protocol": "tcp"`:                                                  `compress: has no meaning with "protocol": "tcp"`,
		`"hsts": "yes"`:                                                                         "hsts: must be true, false or an object",
		`"hsts": {"max_age": "1500ms"}`:                                                         "hsts.max_age: must be whole seconds",
		`"hsts": {"preload": true}`:                                                             "hsts.preload: takes include_subdomains",
		`"hsts": {"preload": true, "include_subdomains": true, "max_age": "24h"}`:               "hsts.preload: takes a max_age of 8760h",
		`"hsts": true, "protocol": "tcp"`:                                                       "hsts: has no meaning",
		`"cors": {}`:                                                                            "cors.origins: is missing",
		`"cors": {"origins": ["*"], "credentials": true}`:                                       `cors.origins[0]: "*" with credentials`,
		`"cors": {"origins": ["*", "https://a.example.com"]}`:                                   "cors.origins: \"*\" stands for all",
		`"cors": {"origins": ["a.example.com"]}`:                                                "is not an origin",
		`"cors": {"origins": ["https://a.example.com/"]}`:                                       "is not an origin",
		`"cors": {"origins": ["https://A.example.com"]}`:                                        "is not an origin",
		`"cors": {"origins": ["https://u@a.example.com"]}`:                                      "is not an origin",
		`"cors": {"origins": ["https://a.example.com:443"]}`:                                    "browsers leave the port",
		`"cors": {"origins": ["null"]}`:                                                         "of any page in a sandbox",
		`"cors": {"origins": ["~("]}`:                                                           `"(" is not a regular expression`,
		`"cors": {"origins": ["https://a.example.com"], "headers": ["*"], "credentials": true}`: "cors.headers[0]: \"*\" does not stand for all",
		`"cors": {"origins": ["*"], "methods": ["get"]}`:                                        "cors.methods[0]: \"get\" is not a method",
		`"cors": {"origins": ["*"], "headers": ["a b"]}`:                                        "is not a name",
		`"cors": {"origins": ["*"], "max_age": "1ms"}`:                                          "cors.max_age: must be whole seconds",
		`"events": {}`:                                                   "events.ping: is missing",
		`"events": {"ping": "1ms"}`:                                      "events.ping: must be from 100ms to 1h",
		`"events": {"ping": "2h"}`:                                       "events.ping: must be from 100ms to 1h",
		`"events": {"early": true}`:                                      "events.ping: is missing",
		`"events": {"ping": "1s"}, "protocol": "tcp"`:                    "events: has no meaning",
		`"error_pages": {"200": {"body": "x"}}`:                          `error_pages: "200" is not the status of an error`,
		`"error_pages": {"6xx": {"body": "x"}}`:                          `"6xx" is not the status of an error`,
		`"error_pages": {"0404": {"body": "x"}}`:                         `"0404" is not the status of an error`,
		`"error_pages": {"404": {}}`:                                     "error_pages.404.body: is missing",
		`"error_pages": {"404": null}`:                                   "error_pages.404: is null",
		`"error_pages": {"404": {"body": "x", "file": "404.html"}}`:      "exclude each other",
		`"error_pages": {"404": {"file": "../secret"}}`:                  "is not the name of a file among the node's pages",
		`"error_pages": {"404": {"file": ".."}}`:                         "is not the name of a file among the node's pages",
		`"error_pages": {"404": {"body": "${nothing}"}}`:                 "error_pages.404.body: ${nothing} is neither",
		`"error_pages": {"404": {"body": "x", "type": "text/html\r\n"}}`: "is not a media type",
		`"error_pages": {"404": {"body": "x"}}, "protocol": "tcp"`:       "error_pages: has no meaning",
	} {
		_, err := router.ParseRoute("r", []byte(`{"host": "a.example.com", "backend": "10.0.0.7:80", `+policy+`}`))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", policy, err, want)
		}
	}
}

func TestCompressTypes(t *testing.T) {
	parse := func(value string) *router.Compress {
		r, err := router.ParseRoute("r", []byte(`{"host": "a.example.com", "backend": "10.0.0.7:80", "compress": `+value+`}`))
		if err != nil {
			t.Fatal(err)
		}
		return r.Compress
	}
	for _, tc := range []struct {
		value, contentType string
		want               bool
	}{
		{"true", "text/html; charset=utf-8", true}, {"true", "TEXT/HTML", true}, {"true", "application/json", true},
		{"true", "application/problem+json", true}, {"true", "image/svg+xml", true}, {"true", "image/png", false},
		{"true", "text/event-stream", false}, {"true", "Text/Event-Stream ; x=y", false}, {"true", "application/grpc-web+json", false},
		{"true", "", false}, {"true", "application/octet-stream", false}, {"true", "+json", false},
		{`{"types": ["text/html"]}`, "text/html ;charset=x", true}, {`{"types": ["text/html"]}`, "text/plain", false},
		{`{"types": ["text/*"]}`, "text/event-stream", false}, {`{"types": ["text/*"]}`, "text/", false},
	} {
		if got := parse(tc.value).Wants(tc.contentType); got != tc.want {
			t.Errorf("%s wants %q: %v", tc.value, tc.contentType, got)
		}
	}
	if parse("false").On() || !parse("true").On() || (*router.Compress)(nil).On() {
		t.Error("on and off are mixed up")
	}
	if c := parse("true"); c.Least() != 1024 || strings.Join(c.Offered(), " ") != "zstd gzip" {
		t.Errorf("the defaults are %d and %v", c.Least(), c.Offered())
	}
	if c := parse(`{"min_size": "2KiB", "codings": ["gzip"]}`); c.Least() != 2048 || strings.Join(c.Offered(), " ") != "gzip" {
		t.Errorf("%+v", c)
	}
}
