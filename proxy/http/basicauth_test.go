package http_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"

	proxyhttp "github.com/remotegpu/sluice/proxy/http"
)

func bcryptHash(t *testing.T, password string, cost int) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), cost)
	if err != nil {
		t.Fatal(err)
	}
	return string(hash)
}

func argon2Hash(password string) string {
	salt := []byte("0123456789abcdef")
	sum := argon2.IDKey([]byte(password), salt, 1, 64, 1, 32)
	enc := base64.RawStdEncoding.EncodeToString
	return "$argon2id$v=19$m=64,t=1,p=1$" + enc(salt) + "$" + enc(sum)
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func TestBasicAuth(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header["Authorization"]) })
	users := fmt.Sprintf(`{"ann":%q,"bob":%q}`, bcryptHash(t, "a:b", 4), argon2Hash("geheim"))
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"app":  `{"host":"app.x.test","backend":"` + addr + `","basic_auth":{"users":` + users + `,"realm":"the lab"}}`,
			"kept": `{"host":"kept.x.test","backend":"` + addr + `","basic_auth":{"users":` + users + `,"keep":true}}`,
		})
	}, func(t *testing.T, p *peer) {
		for _, tc := range []struct {
			name          string
			authorization []string
			want          int
		}{
			{"nothing", nil, 401},
			{"bcrypt", []string{basic("ann", "a:b")}, 200},
			{"again", []string{basic("ann", "a:b")}, 200},
			{"argon2id", []string{"basic  " + basic("bob", "geheim")[6:]}, 200},
			{"wrong", []string{basic("ann", "geheim")}, 401},
			{"wrong-again", []string{basic("ann", "geheim")}, 401},
			{"empty", []string{basic("ann", "")}, 401},
			{"unknown", []string{basic("eve", "a:b")}, 401},
			{"hash", []string{basic("ann", "$2a$04$")}, 401},
			{"bearer", []string{"Bearer x"}, 401},
			{"garbage", []string{"Basic !!!"}, 401},
			{"no-colon", []string{"Basic " + base64.StdEncoding.EncodeToString([]byte("ann"))}, 401},
			{"two", []string{basic("ann", "a:b"), basic("eve", "x")}, 401},
		} {
			req := p.request("GET", "app.x.test", "/"+tc.name, nil)
			if tc.authorization != nil {
				req.Header["Authorization"] = tc.authorization
			}
			resp := p.send(t, req)
			body := readAll(t, resp.Body)
			end := p.rig.log.wait(t, "/"+tc.name)["end"]
			if resp.StatusCode != tc.want || (tc.want == 401) != (end == "unauthorized") {
				t.Errorf("%s: %d %v, want %d", tc.name, resp.StatusCode, end, tc.want)
			}
			if asks := resp.Header.Get("WWW-Authenticate"); (tc.want == 401) != (asks == `Basic realm="the lab", charset="UTF-8"`) {
				t.Errorf("%s: WWW-Authenticate: %s", tc.name, asks)
			}
			if tc.want == 200 && body != "[]" {
				t.Errorf("%s: the backend got %s", tc.name, body)
			}
		}
		req := p.request("GET", "kept.x.test", "/", nil)
		req.Header.Set("Authorization", basic("bob", "geheim"))
		if body := readAll(t, p.send(t, req).Body); body != "["+basic("bob", "geheim")+"]" {
			t.Errorf("the backend that is to have the credentials got %s", body)
		}
	})
}

// TestGuessesHoldUpNobody has one client guess as fast as it can, while another
// one who is in goes on.
func TestGuessesHoldUpNobody(t *testing.T) {
	r := newRig(t, map[string]string{"app": fmt.Sprintf(`{"host":"app.x.test","respond":{"body":"in\n"},"basic_auth":{"users":{"ann":%q}}}`, bcryptHash(t, "right", 7))})
	user, guesser := r.h1Clear(), r.h2()
	if got := user.status(t, "app.x.test", "/", "Authorization", basic("ann", "right")); got != 200 {
		t.Fatalf("the right password: %d", got)
	}
	statuses := make(chan int, 200)
	var guessing sync.WaitGroup
	for i := range 100 {
		guessing.Go(func() {
			req := guesser.request("GET", "app.x.test", "/guess", nil)
			req.Header.Set("Authorization", basic("ann", fmt.Sprint(i)))
			if resp, err := guesser.Do(req); err == nil {
				resp.Body.Close()
				statuses <- resp.StatusCode
			}
		})
	}
	for range 50 {
		if got := user.status(t, "app.x.test", "/", "Authorization", basic("ann", "right")); got != 200 {
			t.Errorf("the right password, during an attack: %d", got)
		}
	}
	guessing.Wait()
	close(statuses)
	count := map[int]int{}
	for status := range statuses {
		count[status]++
	}
	if count[401]+count[503] != 100 || count[503] == 0 || count[401] == 0 {
		t.Errorf("answers to guesses: %v", count)
	}
	if got := r.metric("sluice_http_refused_total"); int(got["auth_busy"]) != count[503] || int(got["unauthorized"]) != count[401] {
		t.Errorf("metric: %v", got)
	}
}

// TestBasicAuthFromAFile lets in who is in a file of the node, and nobody where
// there is none.
func TestBasicAuthFromAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "staff")
	if err := os.WriteFile(path, []byte("ann:"+bcryptHash(t, "a:b", 4)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	overAll(t, func(t *testing.T) *rig {
		return newRig(t, map[string]string{
			"app":  `{"host":"app.x.test","respond":{},"basic_auth":{"file":"staff"}}`,
			"gone": `{"host":"gone.x.test","respond":{},"basic_auth":{"file":"gone"}}`,
			"none": `{"host":"none.x.test","respond":{},"basic_auth":{"file":"none"}}`,
		}, func(cfg *proxyhttp.Config, _ *rig) {
			cfg.PasswordFiles = map[string]string{"staff": path, "gone": path + "-gone"}
		})
	}, func(t *testing.T, p *peer) {
		for _, tc := range []struct {
			host, user, password string
			want                 int
		}{
			{"app", "ann", "a:b", 200}, {"app", "ann", "b", 401}, {"app", "eve", "a:b", 401},
			{"gone", "ann", "a:b", 503}, {"none", "ann", "a:b", 503},
		} {
			if got := p.status(t, tc.host+".x.test", "/", "Authorization", basic(tc.user, tc.password)); got != tc.want {
				t.Errorf("%s by %s: %d, want %d", tc.host, tc.user, got, tc.want)
			}
		}
	})
}
