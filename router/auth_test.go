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
