// ops
namespace fathom {}
