package httpapi

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/settkv/sett/kv"
)

// form is the JSON form of a key as a client reads it.
type form struct {
	Key            *string     `json:"key"`
	KeyBase64      []byte      `json:"key_base64"`
	Value          *string     `json:"value"`
	ValueBase64    []byte      `json:"value_base64"`
	CreateRevision kv.Revision `json:"create_revision"`
	ModRevision    kv.Revision `json:"mod_revision"`
	Version        uint64      `json:"version"`
	ContentType    string      `json:"content_type"`
	ExpiresAt      *time.Time  `json:"expires_at"`
}

func (f *form) key() string {
	if f.Key != nil {
		return *f.Key
	}
	return string(f.KeyBase64)
}

func (f *form) value() string {
	if f.Value != nil {
		return *f.Value
	}
	return string(f.ValueBase64)
}

func parseForm(t testing.TB, text []byte) *form {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	f := new(form)
	if err := dec.Decode(f); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return f
}

// checkForm verifies that the form of it, read with encoding/json, is it.
func checkForm(t testing.TB, it kv.Item) {
	t.Helper()
	text := appendItem([]byte("before"), &it, false)
	if !bytes.HasPrefix(text, []byte("before")) || bytes.IndexByte(text, '\n') >= 0 || !utf8.Valid(text) {
		t.Fatalf("form %q", text)
	}
	f := parseForm(t, text[len("before"):])
	if f.key() != it.Key || f.value() != string(it.Value) {
		t.Fatalf("%q: key %q, want %q; value %q, want %q", text, f.key(), it.Key, f.value(), it.Value)
	}
	if (f.Key != nil) != utf8.ValidString(it.Key) || (f.Value != nil) != utf8.Valid(it.Value) {
		t.Fatalf("%q: text where base64 belongs, or the other way", text)
	}
	if f.CreateRevision != it.CreateRevision || f.ModRevision != it.ModRevision || f.Version != it.Version || f.ContentType != it.ContentType {
		t.Fatalf("%q is not %+v", text, it)
	}
	if (f.ExpiresAt == nil) != it.ExpiresAt.IsZero() || (f.ExpiresAt != nil && !f.ExpiresAt.Equal(it.ExpiresAt)) {
		t.Fatalf("%q: expires_at is not %v", text, it.ExpiresAt)
	}
}

func TestForm(t *testing.T) {
	end := time.Date(2030, 1, 2, 3, 4, 5, 678e6, time.FixedZone("x", 3600))
	it := kv.Item{Key: "app/a", Value: []byte("text"), CreateRevision: 3, ModRevision: 9, Version: 2, ContentType: "text/plain", ExpiresAt: end}
	want := `{"key":"app/a","value":"text","create_revision":3,"mod_revision":9,"version":2,"content_type":"text/plain","expires_at":"2030-01-02T02:04:05.678Z"}`
	if got := string(appendItem(nil, &it, false)); got != want {
		t.Errorf("form %s, want %s", got, want)
	}
	if got := string(appendItem(nil, &it, true)); got != strings.Replace(want, `"value":"text",`, "", 1) {
		t.Errorf("bare form %s", got)
	}
	if got := string(appendItemOrNull(nil, nil)); got != "null" {
		t.Errorf("form of nothing %s", got)
	}
	// Every byte, at every place of a word, alone and in company.
	for c := range 256 {
		for n := range 20 {
			v := bytes.Repeat([]byte{'a'}, 20)
			v[n] = byte(c)
			checkForm(t, kv.Item{Key: string(v), Value: v})
			checkForm(t, kv.Item{Key: string(v[n:]), Value: v[:n+1]})
		}
	}
	for _, v := range []string{"", "\u2028\u2029", "é\x00ö", "\U0010ffff", "\xed\xa0\x80", "\ufeff", "<&>", strings.Repeat("\"", 100), strings.Repeat("\xff", 10000)} {
		checkForm(t, kv.Item{Key: "k" + v, Value: []byte(v)})
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		v := make([]byte, r.IntN(200))
		for i := range v {
			v[i] = byte(r.IntN(1 << (1 + r.IntN(8))))
		}
		checkForm(t, kv.Item{Key: string(v), Value: v, ModRevision: kv.Revision(r.Uint64())})
	}
}

func FuzzForm(f *testing.F) {
	f.Add("key", []byte("value"))
	f.Add("a\"\\/\x00\x1f\x7f", []byte("é\u2028\xff"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		checkForm(t, kv.Item{Key: key, Value: value, CreateRevision: 1, ModRevision: 2, Version: 3})
	})
}

func BenchmarkForm(b *testing.B) {
	value := func(kind string) []byte {
		switch kind {
		case "binary":
			v := make([]byte, 1024)
			for i := range v {
				v[i] = byte(i*7 + 128)
			}
			return v
		case "json":
			return []byte(strings.Repeat(`{"name":"value","n":12345,"list":["a","b"]},`, 24))
		case "greek":
			return []byte(strings.Repeat("αβγδ εζηθ ", 54))
		}
		return []byte(strings.Repeat("the quick brown fox jumps over the lazy dog. ", 23))
	}
	for _, kind := range []string{"text", "json", "greek", "binary"} {
		it := kv.Item{Key: "app/config/some-name-0001", Value: value(kind), CreateRevision: 123456, ModRevision: 1234567, Version: 12}
		b.Run(kind, func(b *testing.B) {
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				buf = appendItem(buf[:0], &it, false)
			}
			b.SetBytes(int64(len(it.Value)))
		})
		b.Run(kind+"/encoding-json", func(b *testing.B) {
			for b.Loop() {
				v := string(it.Value)
				if _, err := json.Marshal(form{Key: &it.Key, Value: &v, CreateRevision: it.CreateRevision, ModRevision: it.ModRevision, Version: it.Version}); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(int64(len(it.Value)))
		})
	}
}
