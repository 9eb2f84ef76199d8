package router_test

import (
	"strings"
	"testing"

	"github.com/remotegpu/sluice/router"
)

func TestBasicAuthRefuses(t *testing.T) {
	const good = "$2y$10$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"
	for _, tc := range []struct{ value, want string }{
		{`{}`, "basic_auth.users: is missing"},
		{`{"users":{}}`, "basic_auth.users: is missing"},
		{`{"users":{"a":"` + good + `"},"file":"staff"}`, "users and file exclude each other"},
		{`{"file":"/etc/passwd"}`, "basic_auth.file: is not a name under password_files"},
		{`{"users":{"a:b":"` + good + `"}}`, "is not a user's name"},
		{`{"users":{"":"` + good + `"}}`, "is not a user's name"},
		{`{"users":{"a":"s3cret"}}`, "basic_auth.users.a: is not the hash of a password"},
		{`{"users":{"a":"$1$salt$s3cret"}}`, "another kind than bcrypt and Argon2id"},
		{`{"users":{"a":"$2y$10$s3cret"}}`, "not a whole hash of bcrypt"},
		{`{"users":{"a":"$2y$20` + good[6:] + `"}}`, "a cost from 4 to 14"},
		{`{"users":{"a":"$argon2id$v=19$m=64,t=1$AAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAA"}}`, "memory, time and threads"},
		{`{"users":{"a":"$argon2id$v=19$m=9999999,t=1,p=1$AAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAA"}}`, "asks for more than"},
		{`{"users":{"a":"$argon2id$v=19$m=64,t=1,p=1$AAAA$s3cret"}}`, "not a whole hash of Argon2id"},
		{`{"users":{"a":"$argon2id$v=16$m=64,t=1,p=1$AAAA$s3cret"}}`, "version 19"},
		{`{"users":{"a":"` + good + `"},"realm":"a\"b"}`, "basic_auth.realm:"},
		{`{"users":{"a":7}}`, "basic_auth.users.a: must be a string"},
		{`{"user":{}}`, `did you mean "users"?`},
	} {
		_, err := router.ParseRoute("r", []byte(`{"host":"a.b","backend":"a:1","basic_auth":`+tc.value+`}`))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %q", tc.value, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the error tells the secret: %v", tc.value, err)
		}
	}
	if _, err := router.ParseRoute("r", []byte(`{"host":"a.b","backend":"a:1","basic_auth":{"users":{"a":"`+good+`"}}}`)); err != nil {
		t.Error(err)
	}
}

func TestForwardAuthRefuses(t *testing.T) {
	for _, tc := range []struct{ value, want string }{
		{`{}`, "forward_auth.backend: is missing"},
		{`{"backend":"a"}`, "forward_auth.backend"},
		{`{"backend":"${nobody}:1"}`, "${nobody} is neither"},
		{`{"backend":{"targets":["a:1"],"health":true}}`, "forward_auth.backend.health: is not checked here"},
		{`{"backend":"a:1","path":"verify"}`, `forward_auth.path: "verify" is not a path`},
		{`{"backend":"a:1","path":"/a b"}`, "forward_auth.path:"},
		{`{"backend":"a:1","method":"DELETE"}`, "forward_auth.method:"},
		{`{"backend":"a:1","timeout":"2m"}`, "forward_auth.timeout: must be at most 1m, not 2m"},
		{`{"backend":"a:1","on_failure":200}`, "forward_auth.on_failure: must be from 400 to 599, not 200"},
		{`{"backend":"a:1","copy":["X Y"]}`, "forward_auth.copy[0]:"},
		{`{"backend":"a:1","copy":["X-User","Content-Length"]}`, "forward_auth.copy[1]: \"Content-Length\" describes the message"},
		{`{"backend":"a:1","copy":["X-Forwarded-For"]}`, "is the node's to say"},
		{`{"backend":"a:1","cache":{}}`, "forward_auth.cache.ttl: must be more than 0"},
		{`{"backend":"a:1","cache":"2h"}`, "forward_auth.cache.ttl: must be more than 0 and at most 1h"},
		{`{"backend":"a:1","cache":{"ttl":"1s","by":["a b"]}}`, "forward_auth.cache.by[0]:"},
	} {
		_, err := router.ParseRoute("r", []byte(`{"host":"a.b","backend":"a:1","forward_auth":`+tc.value+`}`))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want one with %q", tc.value, err, tc.want)
		}
	}
	_, err := router.ParseMapping(router.TCP, 20000, []byte(`{"http":"a:1","requests":{"forward_auth":{"backend":"${host}:1"}}}`))
	if err == nil || !strings.Contains(err.Error(), "requests.forward_auth.backend.targets[0].address") {
		t.Errorf("a mapping with a variable: %v", err)
	}
	r := mustRoute(t, "r", `{"host":"a.b","backend":"a:1","forward_auth":{"backend":"a:2","copy":["X_User"],"cache":"10s"}}`)
	if f := r.Admission().ForwardAuth; f.Names()[0] != "x-user" || f.Cache.TTL == 0 || len(f.Cache.Headers()) != 2 {
		t.Errorf("%+v", f)
	}
}
