package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"

	"github.com/IBM-Cloud/bluemix-go/bmxerror"
)

// report writes what each call came to: one JSON line each, into the file that
// CONFORMANCE_REPORT names.
type report struct {
	file *os.File
	made map[string]bool
}

func newReport() *report {
	file, err := os.OpenFile(os.Getenv("CONFORMANCE_REPORT"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot write the report:", err)
		os.Exit(1)
	}
	return &report{file, map[string]bool{}}
}

func (r *report) write(name, outcome, note string) {
	r.made[strings.SplitN(name, " ", 2)[0]] = true
	line, _ := json.Marshal(map[string]string{"name": name, "outcome": outcome, "note": note})
	fmt.Fprintln(r.file, string(line))
}

// call makes a call and notes whether it works.
func (r *report) call(name string, work func() error) {
	if err := attempt(work); err != nil {
		r.write(name, "fails", gist(err))
		return
	}
	r.write(name, "works", "")
}

// refused makes a call whose right answer is a refusal with this status.
func (r *report) refused(name string, status int, why string, work func() error) {
	err := attempt(work)
	var answer bmxerror.RequestFailure
	switch {
	case err == nil:
		r.write(name, "fails", "answered; a refusal was right: "+why)
	case errors.As(err, &answer) && answer.StatusCode() == status && !strings.Contains(err.Error(), "PATH_NOT_FOUND_ERR"):
		r.write(name, "works", "refused, as it should be: "+why)
	default:
		r.write(name, "fails", gist(err))
	}
}

// leave notes calls that have no meaning here.
func (r *report) leave(why string, names ...string) {
	for _, name := range names {
		r.write(name, "left out", why)
	}
}

// attempt turns a panic inside the client into a failure of that call.
func attempt(work func() error) (err error) {
	defer func() {
		if what := recover(); what != nil {
			err = fmt.Errorf("the client panicked: %v", what)
		}
	}()
	return work()
}

func gist(err error) string {
	said := strings.Join(strings.Fields(err.Error()), " ")
	return said[:min(len(said), 300)]
}

// missing notes the calls of a part of the client that were never made. Each part is an interface.
func (r *report) missing(part string, of any) {
	calls := reflect.TypeOf(of).Elem()
	for n := 0; n < calls.NumMethod(); n++ {
		if name := part + "." + calls.Method(n).Name; !r.made[name] {
			r.write(name, "fails", "not called")
		}
	}
}

// equal fails a call that answered the wrong thing.
func equal(is, should any) error {
	if reflect.DeepEqual(is, should) {
		return nil
	}
	return fmt.Errorf("%v instead of %v", is, should)
}
