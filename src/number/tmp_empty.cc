// number
namespace fathom {}
